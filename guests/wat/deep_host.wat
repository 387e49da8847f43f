;; deep_host: guest and host call each other in turns, as deep as asked.
(module
  (import "env" "descend" (func $host_descend (param i32) (result i32)))

  ;; The depth reached: the host is expected to call descend(n) again in its own descend(n).
  (func (export "descend") (param $n i32) (result i32)
    (if (result i32) (i32.le_s (local.get $n) (i32.const 0))
      (then (i32.const 0))
      (else
        (i32.add
          (i32.const 1)
          (call $host_descend (i32.sub (local.get $n) (i32.const 1))))))))
