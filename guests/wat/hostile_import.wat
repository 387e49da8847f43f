;; hostile_import: needs a function whose name tries to forge lines of a log, a terminal, or a metrics page.
(module
  (import "env\"} 1\nsandhost_forged 1\n" "\1b[2J\u{202e}gpj.\0d\nERROR root: forged %s%n{0}" (func $hostile))
  (func (export "call") (call $hostile)))
