;; imported_global: imports a constant, and places its data at the address which that constant names.
(module
  (import "env" "base" (global $base i32))
  (memory (export "memory") 1 1)
  (data (global.get $base) "placed")

  (func (export "base") (result i32) (global.get $base))
  (func (export "peek") (param i32) (result i32) (i32.load8_u (local.get 0))))
