;; start_spin: its start function never returns, so that instantiation itself needs a deadline.
(module
  (memory (export "memory") 1 1)
  (func $start
    (i32.store (i32.const 0) (i32.const 0x5a5a5a5a))
    (loop $for_ever (br $for_ever)))
  (func (export "never") (result i32) (i32.const 1))
  (start $start))
