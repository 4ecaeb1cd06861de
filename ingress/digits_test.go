package ingress

import (
	"strings"
	"testing"
)

// Names of Services may begin with a digit (relaxed validation, Kubernetes 1.37).
func TestServiceNamesThatBeginWithADigit(t *testing.T) {
	yaml := strings.ReplaceAll(sampleYAML(t), "name: web}", "name: 7web}")
	w := newFixture(t, Settings{Default: true}, yaml+ing("a", nil, rules("a.example / P 7web:80")))
	w.expect([]string{"http://a.example/ = shop/7web:80"})
	if p := w.allProblems(); len(p) > 0 {
		t.Error(p)
	}
}
