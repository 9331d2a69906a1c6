package kernel

func maker(string) {}
