;; hostcall: calls host functions in a loop, to check and to time the way from guest to host.
(module
  (import "env" "nop" (func $nop))
  (import "env" "inc" (func $inc (param i32) (result i32)))

  (func (export "call_nop") (param $n i32)
    (block $done
      (loop $again
        (br_if $done (i32.eqz (local.get $n)))
        (call $nop)
        (local.set $n (i32.sub (local.get $n) (i32.const 1)))
        (br $again))))

  ;; inc(inc(... inc(0))), n times: n when the host really adds one.
  (func (export "call_inc") (param $n i32) (result i32)
    (local $value i32)
    (block $done
      (loop $again
        (br_if $done (i32.eqz (local.get $n)))
        (local.set $value (call $inc (local.get $value)))
        (local.set $n (i32.sub (local.get $n) (i32.const 1)))
        (br $again)))
    (local.get $value)))
