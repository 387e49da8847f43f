;; turnover: lists that refer to themselves, so that only a collection finds what was replaced.
(module
  (import "sandhost" "list_new" (func $new (result i64)))
  (import "sandhost" "list_push" (func $push (param i64 i64)))
  (import "sandhost" "list_set" (func $set (param i64 i32 i64)))
  (import "sandhost" "release" (func $release (param i64) (result i32)))
  (global $all (mut i64) (i64.const 0))
  (func (export "fill") (param $count i32) (local $one i64)
    (global.set $all (call $new))
    (loop $again
      (call $push (global.get $all) (local.tee $one (call $new)))
      (drop (call $release (local.get $one)))
      (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1))))))
  ;; Before each one it goes $work times round a loop.
  (func (export "replace") (param $from i32) (param $count i32) (param $work i32) (local $one i64) (local $left i32)
    (loop $again
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (local.set $one (call $new))
      (call $push (local.get $one) (local.get $one))
      (call $set (global.get $all) (i32.add (local.get $from) (local.get $count)) (local.get $one))
      (drop (call $release (local.get $one)))
      (local.set $left (local.get $work))
      (if (local.get $left) (then (loop $compute
        (br_if $compute (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
      (br_if $again (local.get $count)))))
