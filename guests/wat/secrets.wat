;; secrets: writes a secret over all its memory, and looks for what somebody else left there.
(module
  (memory (export "memory") 4 64)

  (func $size_bytes (result i32)
    (i32.shl (memory.size) (i32.const 16)))

  ;; Writes `byte` over the whole memory, as large as it is now.
  (func (export "write") (param $byte i32)
    (memory.fill (i32.const 0) (local.get $byte) (call $size_bytes)))

  ;; How many bytes of the whole memory differ from `byte`: scan(0) counts what is not zero.
  (func (export "scan") (param $byte i32) (result i32)
    (local $address i32) (local $end i32) (local $found i32)
    (local.set $byte (i32.and (local.get $byte) (i32.const 0xff)))
    (local.set $end (call $size_bytes))
    (loop $again
      (local.set $found
        (i32.add
          (local.get $found)
          (i32.ne (i32.load8_u (local.get $address)) (local.get $byte))))
      (local.set $address (i32.add (local.get $address) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $address) (local.get $end))))
    (local.get $found))

  (func (export "size") (result i32) (memory.size))
  (func (export "grow") (param $wasm_pages i32) (result i32)
    (memory.grow (local.get $wasm_pages))))
