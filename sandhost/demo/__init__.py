"""See it happen, on real plugins, in half a minute: `sandhost demo`.

command                       options, exit status
report, picture, live         what is printed, drawn, and shown while it runs
load, contest                 the run: tenants and hostile guests; then the peers, in turn with us
cast, drawing                 plugins, tenants, honest work and misdeeds; a DOT graph, laid out
"""
