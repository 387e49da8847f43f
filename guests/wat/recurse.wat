;; recurse: calls itself without end, until the stack is used up.
(module
  (func $recurse (export "recurse") (param $depth i32) (result i32)
    ;; The addition after the call keeps this from being a loop.
    (i32.add (i32.const 1) (call $recurse (i32.add (local.get $depth) (i32.const 1))))))
