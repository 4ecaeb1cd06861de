module wayleave.dev

go 1.26
