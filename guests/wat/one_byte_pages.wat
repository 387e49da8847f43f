;; one_byte_pages: a memory whose wasm page is one byte (custom page sizes): 100 bytes, at most 10,000.
(module
  (memory (export "memory") 100 10000 (pagesize 1))
  (data (i32.const 90) "0123456789")

  (func (export "peek") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "poke") (param i32 i32) (i32.store8 (local.get 0) (local.get 1)))
  (func (export "size") (result i32) (memory.size))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
