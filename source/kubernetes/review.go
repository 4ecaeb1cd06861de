package kubernetes

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Verdict is what the API server says of the bearer of a token.
type Verdict int

// The results of a review. The zero value allows nothing.
const (
	// TokenInvalid means that the token is nobody's.
	TokenInvalid Verdict = iota
	// TokenDenied means that the token is valid, and its bearer has no right.
	TokenDenied
	// TokenAllowed means that the bearer has the right.
	TokenAllowed
)

// reviewer asks the API server as the bearer of a token.
type reviewer struct{ client rest.Interface }

// newReviewer makes a client without credentials.
func newReviewer(c *rest.Config) (*reviewer, error) {
	api, err := kubernetes.NewForConfig(rest.AnonymousClientConfig(c))
	if err != nil {
		return nil, err
	}
	return &reviewer{api.AuthorizationV1().RESTClient()}, nil
}

// MayGet says whether the bearer of a token may get a nonResourceURL, such as /metrics. The question is sent with that
// token in place of the agent's own (SelfSubjectAccessReview), which the ClusterRole system:basic-user allows every
// account: the agent needs no right to review the tokens and rights of others. The error means that the API server did
// not say.
func (c *Client) MayGet(ctx context.Context, token, path string) (Verdict, error) {
	if c.reviewer == nil {
		return TokenInvalid, fmt.Errorf("this client has no address of an API server")
	}
	question := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: "get"}}}
	var answer authorizationv1.SelfSubjectAccessReview
	err := c.reviewer.client.Post().Resource("selfsubjectaccessreviews").SetHeader("Authorization", "Bearer "+token).
		Body(question).Do(ctx).Into(&answer)
	switch {
	case apierrors.IsUnauthorized(err):
		return TokenInvalid, nil
	case apierrors.IsForbidden(err):
		return TokenDenied, nil
	case err != nil:
		return TokenInvalid, fmt.Errorf("review of a token: %w", err)
	case answer.Status.Allowed && !answer.Status.Denied:
		return TokenAllowed, nil
	}
	return TokenDenied, nil
}
