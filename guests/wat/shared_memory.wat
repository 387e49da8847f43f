;; shared_memory: has a memory shared between threads: to be refused, since it would bypass the region pool.
(module
  (memory (export "memory") 1 4 shared)
  (func (export "add") (param i32 i32) (result i32)
    (i32.atomic.rmw.add (local.get 0) (local.get 1))))
