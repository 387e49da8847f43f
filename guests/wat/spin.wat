;; spin: never comes back: a pure loop, and one that keeps dirtying its memory.
(module
  (memory (export "memory") 16 16)

  (func (export "spin")
    (loop $for_ever (br $for_ever)))

  ;; Writes round after round over all its memory, so that it can be stopped in the middle of a store.
  (func (export "spin_dirtying")
    (local $address i32)
    (loop $for_ever
      (i64.store (local.get $address) (i64.const 0x5a5a5a5a5a5a5a5a))
      (local.set $address
        (i32.and (i32.add (local.get $address) (i32.const 8)) (i32.const 0xfffff)))
      (br $for_ever))))
