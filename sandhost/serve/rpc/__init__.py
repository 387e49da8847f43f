"""The door for gRPC: what sandhost.proto says, over a `Service`, on grpc.aio.

    sandhost.proto ─► messages          tools/messages.py makes them
    server                              one port: limits, reflection, health, its end
    invoker, plugins, health            what each RPC does
    doors                               how it comes in: token, messages, time; status: how it fails;
                                        timing: how long it takes
    numbers                             values of wasm in messages, and back

Every handler streams for grpc.aio, also where one message comes and one goes: on the wire that is the same,
and so nothing of a request is read before its token is known, and what is no message is our answer to give.
"""
