;; oob_elem: an element segment that ends beyond its table: the spawn must fail after the table was made.
(module
  (memory (export "memory") 1 2)
  (table 2 funcref)
  (func $never (export "never") (result i32) (i32.const 1))
  (elem (i32.const 1) $never $never))
