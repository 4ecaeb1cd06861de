// Package regex compiles the regular expressions of Ingresses, within bounds: RE2 takes a time that grows with the
// product of an expression's instructions and the length of the text.
package regex
