package program

// Plans records the plan of each key: what it asks for, and what of it is in force. Where keys compete, as Services do
// for a port, it decides who gets what. It is not safe for concurrent use.
type Plans[K comparable, P any] interface {
	// Reset makes it empty.
	Reset()
	// InForce returns the plans that are in the kernel, and Wanted those that were asked for. Both must not be changed.
	InForce() map[K]P
	Wanted() map[K]P
	// Change drafts other plans for some keys; nil removes a key. It may add keys to the change that get what others
	// give up.
	Change(todo map[K]*P) PlanChange[K, P]
}

// PlanChange is a change of Plans that has not been accepted.
type PlanChange[K comparable, P any] interface {
	// Plans returns what each key of the change is to have, nil for nothing, and Given what it asked for.
	Plans() map[K]*P
	Given() map[K]*P
	// Failed returns the errors of keys that do not get all that they asked for.
	Failed() map[K]error
	// Part returns the same decisions for some of the keys, none of which has a plan in force.
	Part(keys []K) PlanChange[K, P]
	// Accept records the change.
	Accept()
}

// ownPlans are plans of keys that do not compete.
type ownPlans[K comparable, P any] struct{ plans map[K]P }

func (o *ownPlans[K, P]) Reset()                             { o.plans = map[K]P{} }
func (o *ownPlans[K, P]) InForce() map[K]P                   { return o.plans }
func (o *ownPlans[K, P]) Wanted() map[K]P                    { return o.plans }
func (o *ownPlans[K, P]) Change(t map[K]*P) PlanChange[K, P] { return ownChange[K, P]{o, t} }

type ownChange[K comparable, P any] struct {
	base *ownPlans[K, P]
	todo map[K]*P
}

func (c ownChange[K, P]) Plans() map[K]*P     { return c.todo }
func (c ownChange[K, P]) Given() map[K]*P     { return c.todo }
func (c ownChange[K, P]) Failed() map[K]error { return nil }

func (c ownChange[K, P]) Part(keys []K) PlanChange[K, P] {
	part := make(map[K]*P, len(keys))
	for _, k := range keys {
		part[k] = c.todo[k]
	}
	return ownChange[K, P]{c.base, part}
}

func (c ownChange[K, P]) Accept() {
	for k, plan := range c.todo {
		if plan == nil {
			delete(c.base.plans, k)
		} else {
			c.base.plans[k] = *plan
		}
	}
}
