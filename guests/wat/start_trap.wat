;; start_trap: its start function fills its memory and then traps, so that no instance ever exists.
(module
  (memory (export "memory") 4 4)
  (func $start
    (memory.fill (i32.const 0) (i32.const 0x5a) (i32.const 0x40000))
    (unreachable))
  (func (export "never") (result i32) (i32.const 1))
  (start $start))
