;; imported_table: imports a table that no host offers unless asked to.
(module
  (import "env" "table" (table $table 4 funcref))
  (func $seven (result i32) (i32.const 7))
  (elem (table $table) (i32.const 1) func $seven)

  (func (export "call") (param $index i32) (result i32)
    (call_indirect $table (result i32) (local.get $index)))
  (func (export "size") (result i32) (table.size $table)))
