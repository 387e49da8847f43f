"""A service for plugins of many tenants, over HTTP and gRPC: `sandhost serve`.

app                   what the process is put together of, and its life
listening, http, rpc  how requests come in; admin and observed are routes for the operator
console               a page that shows what goes on, and calls functions; page/ is what it is made of
operations, shapes, openapi   what can be asked for, with what fields, as a document
wire, inflow, gate    what a client of HTTP may not do; who comes in, decided before it costs much
direct, replies       calls of numbers, answered there, with bytes
requests, frames      how requests are read, and a command's streams
service               what a request does: upload, invoke, sessions
invocation, loaded, values   what it calls, of which version, and with what
retries               what comes again with its key
uploads, deployments  how a module comes in, and gets ready: turns, and the compiler, in processes of its own
overload, sessions    who may come in, and who stays
line, concurrency, shares    in what order, how many at once, and how much of a turn of the loop
lately                who used much of it, and gives way
realtime              before what other programs it goes itself
steps                 of tasks, made in such turns
registry              what is known: tenants, tokens, plugins, versions, aliases (records: as what)
refusals              whose tokens were none
upkeep                what is done now and then
durations             how long requests took
store, blobs          where that survives a restart (database, schema, migrations: in SQLite)
bodies                large ones, in buffers of a pool
time_limit, threads   of what a task waits for; background: of what nobody waits for
bag, bag_grpc, bag_asgi  what a request holds, given back at its end (also for other applications)
config, problems      settings; what can be wrong with a request
collecting            Python's own collector, kept out of requests' way
"""
