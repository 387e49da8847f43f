;; unreachable: executes `unreachable`, two named frames deep.
(module
  (func $inner (unreachable))
  (func $trap (export "trap") (call $inner)))
