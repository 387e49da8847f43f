"""Everything that can be asked for: one function each, which sends nothing.

deploying, calling, operating   what tenants have, what it does, and who there is
ask                             one request, and what all of them are made of

Each function is a generator of requests (`Ask`): it is given what an answer held, and returns what the caller
wants. Most make one request. Both faces of the client run them, and their documentation is that of the methods.
"""
