;; oob_data: its second data segment ends beyond its memory: the spawn must fail, and the first segment must not stay.
(module
  (memory (export "memory") 1 2)
  (data (i32.const 0) "in bounds")
  (data (i32.const 65530) "out of bounds")
  (func (export "never") (result i32) (i32.const 1)))
