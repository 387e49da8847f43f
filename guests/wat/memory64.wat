;; memory64: a memory with 64-bit addresses.
(module
  (memory (export "memory") i64 1 16)
  (data (i64.const 8) "wide")

  (func (export "peek") (param i64) (result i32) (i32.load8_u (local.get 0)))
  (func (export "poke") (param i64 i32) (i32.store8 (local.get 0) (local.get 1)))
  (func (export "size") (result i64) (memory.size))
  (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0))))
