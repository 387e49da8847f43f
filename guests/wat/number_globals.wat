;; number_globals: mutable globals of every number type and v128, one of them exported, with getters and setters.
(module
  (global $exported (export "exported") (mut i32) (i32.const 5))
  (global $i32 (mut i32) (i32.const -1))
  (global $i64 (mut i64) (i64.const 0x7fffffffffffffff))
  (global $f32 (mut f32) (f32.const 1.5))
  (global $f64 (mut f64) (f64.const 2.5))
  (global $v128 (mut v128) (v128.const i64x2 1 2))

  (func (export "get_exported") (result i32) (global.get $exported))
  (func (export "set_exported") (param i32) (global.set $exported (local.get 0)))
  (func (export "get_i32") (result i32) (global.get $i32))
  (func (export "set_i32") (param i32) (global.set $i32 (local.get 0)))
  (func (export "get_i64") (result i64) (global.get $i64))
  (func (export "set_i64") (param i64) (global.set $i64 (local.get 0)))
  ;; Floats go by their bits, since a host's may lose the payload of a NaN.
  (func (export "get_f32") (result i32) (i32.reinterpret_f32 (global.get $f32)))
  (func (export "set_f32") (param i32) (global.set $f32 (f32.reinterpret_i32 (local.get 0))))
  (func (export "get_f64") (result i64) (i64.reinterpret_f64 (global.get $f64)))
  (func (export "set_f64") (param i64) (global.set $f64 (f64.reinterpret_i64 (local.get 0))))
  ;; And the v128 by its halves, which every host can pass.
  (func (export "get_v128") (result i64 i64)
    (i64x2.extract_lane 0 (global.get $v128))
    (i64x2.extract_lane 1 (global.get $v128)))
  (func (export "set_v128") (param $low i64) (param $high i64)
    (global.set $v128
      (i64x2.replace_lane 1 (i64x2.splat (local.get $low)) (local.get $high)))))
