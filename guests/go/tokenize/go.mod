module tokenize

go 1.24
