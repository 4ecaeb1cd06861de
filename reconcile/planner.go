package reconcile

import "wayleave.dev/model"

// Planner turns objects into plans. It is called in rounds, by one goroutine: first Keys, with all that changed since
// the round before, then Plan for each of these keys, with the same snapshot. So a planner may follow the objects in
// Keys, in indexes of its own, and Plan may rely on them.
type Planner[K comparable, P any] interface {
	// Keys turns a change into the keys to plan anew; nil keys are fine. The first change names all objects. Whoever
	// keeps plans calls it for every change, also where no key is of interest.
	Keys(model.Snapshot, model.Changes) []K
	// Plan has no effects. ok false means that nothing is wanted for the key. Problems are
	// reported; what is planned beside them is used.
	Plan(model.Snapshot, K) (plan P, ok bool, problems []model.Problem)
}

// PlannerOf makes a Planner of two functions.
func PlannerOf[K comparable, P any](keys func(model.Snapshot, model.Changes) []K,
	plan func(model.Snapshot, K) (P, bool, []model.Problem)) Planner[K, P] {
	return planner[K, P]{keys, plan}
}

type planner[K comparable, P any] struct {
	keys func(model.Snapshot, model.Changes) []K
	plan func(model.Snapshot, K) (P, bool, []model.Problem)
}

// Keys implements Planner.
func (p planner[K, P]) Keys(s model.Snapshot, c model.Changes) []K { return p.keys(s, c) }

// Plan implements Planner.
func (p planner[K, P]) Plan(s model.Snapshot, k K) (P, bool, []model.Problem) { return p.plan(s, k) }
