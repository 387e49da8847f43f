;; grown: starts with one wasm page and a little data, and grows as far as it is told, one written byte an OS page.
(module
  (memory (export "memory") 1)
  (data (i32.const 1024) "first data")
  (func (export "size") (result i32) (memory.size))
  ;; Grows, and writes the page's number into each OS page that it got; the old size, or -1.
  (func (export "grow") (param $pages i32) (result i32)
    (local $old i32) (local $at i32)
    (local.set $old (memory.grow (local.get $pages)))
    (if (i32.eq (local.get $old) (i32.const -1)) (then (return (i32.const -1))))
    (local.set $at (i32.mul (local.get $old) (i32.const 65536)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (i32.mul (memory.size) (i32.const 65536))))
        (i32.store (local.get $at) (i32.shr_u (local.get $at) (i32.const 12)))
        (local.set $at (i32.add (local.get $at) (i32.const 4096)))
        (br $next)))
    (local.get $old))
  ;; The sum of what stands at the beginning of each OS page.
  (func (export "sum") (result i64)
    (local $at i32) (local $sum i64)
    (loop $next
      (local.set $sum (i64.add (local.get $sum) (i64.load32_u (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (br_if $next (i32.lt_u (local.get $at) (i32.mul (memory.size) (i32.const 65536)))))
    (local.get $sum))
  (func (export "peek") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "poke") (param i32 i32) (i32.store8 (local.get 0) (local.get 1))))
