;; start_counts: its start function counts its runs, in memory and in a global, and asks the host to count as well.
(module
  (import "env" "started" (func $started))
  (memory (export "memory") 1)
  (global $runs (mut i32) (i32.const 0))
  (func $count
    (global.set $runs (i32.add (global.get $runs) (i32.const 1)))
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
    (call $started))
  (start $count)
  (func (export "runs") (result i32) (global.get $runs))
  (func (export "runs_in_memory") (result i32) (i32.load (i32.const 0))))
