;; grow_forever: asks for memory until it is refused, in three tempers.
(module
  (memory (export "memory") 1)

  ;; Stops at the first refusal, with a trap.
  (func (export "until_refused")
    (loop $again
      (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (unreachable))

  ;; The same, and writes to each wasm page it got, so that the memory is really used.
  (func (export "until_refused_touching")
    (local $wasm_page i32)
    (block $refused
      (loop $again
        (local.set $wasm_page (memory.grow (i32.const 1)))
        (br_if $refused (i32.eq (local.get $wasm_page) (i32.const -1)))
        (i32.store8 (i32.shl (local.get $wasm_page) (i32.const 16)) (i32.const 1))
        (br $again)))
    (unreachable))

  ;; Does not listen: goes on asking for ever.
  (func (export "ignoring_refusal")
    (loop $again
      (drop (memory.grow (i32.const 1)))
      (br $again))))
