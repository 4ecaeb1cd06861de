package schema

// Lack is something that an upstream server cannot do.
type Lack int

const (
	// lackEDNS: a query with an OPT record gets an error, or no answer.
	LackEDNS Lack = iota
	// lackLetters: a name with capitals is denied, gets no answer, or comes back in other letters.
	LackLetters
	// lackTCP: TCP is closed, though UDP says that an answer does not fit.
	LackTCP
	LackKinds
)

// String is the lack's name in metrics and status.
func (l Lack) String() string { return [LackKinds]string{"edns0", "letters", "tcp"}[l] }
