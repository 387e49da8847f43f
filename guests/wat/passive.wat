;; passive: passive data between active data: memory.init, data.drop, and the numbers of the segments.
(module
  (memory (export "memory") 1 1)
  (data $before (i32.const 0) "before")
  (data $middle "passive bytes")
  (data $after (i32.const 16) "after")
  (data $empty (i32.const 65536) "")

  (func (export "init") (param $to i32) (param $from i32) (param $length i32)
    (memory.init $middle (local.get $to) (local.get $from) (local.get $length)))
  (func (export "drop") (data.drop $middle))

  ;; An active segment counts as dropped once the instance exists: a trap, unless $length is 0.
  (func (export "init_active") (param $to i32) (param $length i32)
    (memory.init $after (local.get $to) (i32.const 0) (local.get $length)))
  (func (export "drop_active") (data.drop $before))

  (func (export "peek") (param i32) (result i32) (i32.load8_u (local.get 0))))
