;; add: the smallest useful guest: adds two numbers, has no memory, imports nothing.
(module
  (func (export "add") (param i32 i32) (result i32)
    (i32.add (local.get 0) (local.get 1))))
