;; oob: loads and stores at whatever address it is told, also with offsets of 2 and nearly 4 GiB.
(module
  (memory (export "memory") 1 2)

  (func (export "load8") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "load64") (param i32) (result i64) (i64.load (local.get 0)))
  (func (export "load128_low") (param i32) (result i64)
    (i64x2.extract_lane 0 (v128.load (local.get 0))))
  (func (export "store8") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
  (func (export "store64") (param i32 i64) (i64.store (local.get 0) (local.get 1)))

  (func (export "load8_2gib") (param i32) (result i32)
    (i32.load8_u offset=0x7fffffff (local.get 0)))
  (func (export "load8_4gib") (param i32) (result i32)
    (i32.load8_u offset=0xffffffff (local.get 0)))
  (func (export "store64_4gib") (param i32 i64)
    (i64.store offset=0xffffffff (local.get 0) (local.get 1)))

  ;; One call to the host's memmove or memset, which must check before it writes anything.
  (func (export "fill") (param $to i32) (param $byte i32) (param $length i32)
    (memory.fill (local.get $to) (local.get $byte) (local.get $length)))
  (func (export "copy") (param $to i32) (param $from i32) (param $length i32)
    (memory.copy (local.get $to) (local.get $from) (local.get $length)))

  (func (export "grow") (param $wasm_pages i32) (result i32)
    (memory.grow (local.get $wasm_pages))))
