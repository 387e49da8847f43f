;; bss: 16 MiB of memory without any data, filled and read as told.
(module
  (memory (export "memory") 256 256)

  (func (export "fill") (param $offset i32) (param $length i32) (param $byte i32)
    (memory.fill (local.get $offset) (local.get $byte) (local.get $length)))
  (func (export "peek") (param i32) (result i32) (i32.load8_u (local.get 0))))
