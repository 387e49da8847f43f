;; exceptions: wasm exception handling: thrown and caught inside, and thrown with nobody to catch it.
(module
  (tag $error (export "error") (param i32))
  (memory (export "memory") 1 1)
  (data (i32.const 0) "data beside a GC heap")

  (func $throw (param $value i32)
    (throw $error (local.get $value)))

  ;; value + 1, by way of an exception that carries value through one frame.
  (func (export "catch") (param $value i32) (result i32)
    (i32.add
      (i32.const 1)
      (block $caught (result i32)
        (try_table (catch $error $caught)
          (call $throw (local.get $value)))
        (unreachable))))

  (func (export "throw_uncaught") (param $value i32)
    (call $throw (local.get $value)))

  (func (export "peek") (param i32) (result i32) (i32.load8_u (local.get 0))))
