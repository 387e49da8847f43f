;; externrefs: an externref table and a mutable externref global that only ever hold null.
(module
  (table $table 3 16 externref)
  (global $global (mut externref) (ref.null extern))
  (global $steps (mut i32) (i32.const 0))
  (func (export "step") (result i32)
    (global.set $global (ref.null extern))
    (table.set $table (i32.const 1) (global.get $global))
    (global.set $steps (i32.add (global.get $steps) (i32.const 1)))
    (global.get $steps))
  (func (export "grow") (param i32) (result i32) (table.grow $table (ref.null extern) (local.get 0)))
  (func (export "size") (result i32) (table.size $table))
  (func (export "is_null") (param i32) (result i32) (ref.is_null (table.get $table (local.get 0))))
  (func (export "global_is_null") (result i32) (ref.is_null (global.get $global))))
