;; tables: grows a table until it is refused, or for ever.
(module
  (table $table 1 funcref)

  (func (export "size") (result i32) (table.size $table))

  (func (export "grow") (param $elements i32) (result i32)
    (table.grow $table (ref.null func) (local.get $elements)))

  (func (export "until_refused")
    (loop $again
      (br_if $again
        (i32.ne (table.grow $table (ref.null func) (i32.const 1024)) (i32.const -1))))
    (unreachable))

  (func (export "ignoring_refusal")
    (loop $again
      (drop (table.grow $table (ref.null func) (i32.const 1024)))
      (br $again))))
