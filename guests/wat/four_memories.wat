;; four_memories: four memories with data in each, written and grown independently; the last one has no data.
(module
  (memory $m0 (export "memory") 1 8)
  (memory $m1 (export "memory1") 2 16)
  (memory $m2 (export "memory2") 3 24)
  (memory $m3 (export "memory3") 4 32)
  (data (memory $m0) (i32.const 16) "memory number 0")
  (data (memory $m1) (i32.const 4112) "memory number 1")
  (data (memory $m2) (i32.const 8208) "memory number 2")

  (func (export "peek0") (param i32) (result i32) (i32.load8_u $m0 (local.get 0)))
  (func (export "poke0") (param i32 i32) (i32.store8 $m0 (local.get 0) (local.get 1)))
  (func (export "size0") (result i32) (memory.size $m0))
  (func (export "grow0") (param i32) (result i32) (memory.grow $m0 (local.get 0)))

  (func (export "peek1") (param i32) (result i32) (i32.load8_u $m1 (local.get 0)))
  (func (export "poke1") (param i32 i32) (i32.store8 $m1 (local.get 0) (local.get 1)))
  (func (export "size1") (result i32) (memory.size $m1))
  (func (export "grow1") (param i32) (result i32) (memory.grow $m1 (local.get 0)))

  (func (export "peek2") (param i32) (result i32) (i32.load8_u $m2 (local.get 0)))
  (func (export "poke2") (param i32 i32) (i32.store8 $m2 (local.get 0) (local.get 1)))
  (func (export "size2") (result i32) (memory.size $m2))
  (func (export "grow2") (param i32) (result i32) (memory.grow $m2 (local.get 0)))

  (func (export "peek3") (param i32) (result i32) (i32.load8_u $m3 (local.get 0)))
  (func (export "poke3") (param i32 i32) (i32.store8 $m3 (local.get 0) (local.get 1)))
  (func (export "size3") (result i32) (memory.size $m3))
  (func (export "grow3") (param i32) (result i32) (memory.grow $m3 (local.get 0)))

  ;; From the first memory into the last.
  (func (export "copy") (param $to i32) (param $from i32) (param $length i32)
    (memory.copy $m3 $m0 (local.get $to) (local.get $from) (local.get $length))))
