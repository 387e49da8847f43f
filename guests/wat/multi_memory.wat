;; multi_memory: three memories of different sizes, each with its own data, each read, written and grown by itself.
(module
  (memory $first (export "memory") 1 4)
  (memory $second (export "second") 2 8)
  (memory $third (export "third") 1)

  (data (memory $first) (i32.const 0) "first")
  (data (memory $second) (i32.const 65536) "second")
  (data (memory $third) (i32.const 16) "third")

  (func (export "peek0") (param i32) (result i32) (i32.load8_u $first (local.get 0)))
  (func (export "peek1") (param i32) (result i32) (i32.load8_u $second (local.get 0)))
  (func (export "peek2") (param i32) (result i32) (i32.load8_u $third (local.get 0)))

  (func (export "poke0") (param i32 i32) (i32.store8 $first (local.get 0) (local.get 1)))
  (func (export "poke1") (param i32 i32) (i32.store8 $second (local.get 0) (local.get 1)))
  (func (export "poke2") (param i32 i32) (i32.store8 $third (local.get 0) (local.get 1)))

  (func (export "grow0") (param i32) (result i32) (memory.grow $first (local.get 0)))
  (func (export "grow1") (param i32) (result i32) (memory.grow $second (local.get 0)))
  (func (export "grow2") (param i32) (result i32) (memory.grow $third (local.get 0))))
