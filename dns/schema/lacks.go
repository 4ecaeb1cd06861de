package schema

// Lack is a limitation of an upstream server.
type Lack int

const (
	// lackEDNS: a query with an OPT record gets an error, or no answer.
	LackEDNS Lack = iota
	// lackLetters: a name with capitals is denied, gets no answer, or is returned in other letter case.
	LackLetters
	// lackTCP: TCP is closed, although answers by UDP are truncated.
	LackTCP
	LackKinds
)

// String returns the limitation's name in metrics and status.
func (l Lack) String() string { return [LackKinds]string{"edns0", "letters", "tcp"}[l] }
