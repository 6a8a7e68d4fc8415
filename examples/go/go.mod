module example.org/larder/hello

go 1.19
