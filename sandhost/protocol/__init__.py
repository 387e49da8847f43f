"""What the service and its clients both say: the words of HTTP requests and answers, known to neither side alone.

problems    what can be wrong with a request, one class each
values      numbers and vectors of wasm in JSON
frames      what a command writes, line by line, while it runs
"""
