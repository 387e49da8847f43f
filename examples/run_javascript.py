"""Run JavaScript of strangers, each program in a fork of an interpreter with a library loaded."""

import sandhost

LIBRARY = """
const price = item => ({apple: 0.5, pear: 0.8})[item];
function total(basket) {
  return Object.entries(basket).reduce((sum, [item, n]) => sum + price(item) * n, 0);
}
"""

with (
    sandhost.Host() as host,
    sandhost.interpreters.javascript(host, setup=LIBRARY, progress=True) as box,
):
    result = box.run("console.log('hello'); ({total: total({apple: 6, pear: 2})})")
    print(result.stdout, result.value)
    print(box.run("total(null)").error)
    with box.session(limits=sandhost.Limits(memory="16 MiB", deadline=0.5)) as session:
        session.run("let count = 0")
        print([session.run("++count").value for _ in range(3)])
