;; gc_types: exports with types that wasmtime's C API cannot name: asking it for their kind ends the process.
(module
  (type $point (struct (field i32) (field i32)))

  (func (export "anyref") (param anyref) (result anyref) (local.get 0))
  (func (export "exnref") (param exnref) (result exnref) (local.get 0))
  (func (export "i31") (param i32) (result i31ref) (ref.i31 (local.get 0)))
  (func (export "point") (param i32 i32) (result (ref $point))
    (struct.new $point (local.get 0) (local.get 1)))
  (global (export "wide") (mut v128) (v128.const i64x2 1 2))
  (table (export "objects") 1 anyref)

  ;; One export that any host can call.
  (func (export "add") (param i32 i32) (result i32)
    (i32.add (local.get 0) (local.get 1))))
