;; oob_data_empty: an empty data segment that begins beyond its memory: the spawn must fail though nothing is written.
(module
  (memory (export "memory") 1 2)
  (data (i32.const 65537) "")
  (func (export "never") (result i32) (i32.const 1)))
