// Package usertest checks the token rules of package user, alone or inside a store, against a model that keeps every
// account in exact buckets and was written from the rules in the README of package user. Only tests import it.
//
// A [Sequence] is a random history of one account together with what the model says of each step; [Sequences] draws
// them. [Sequence.Run] plays one against a [Subject], a store or what stands for it, through [user.Service], and reports
// the first difference. It uses nothing of package testing, so that many sequences can be played at once:
//
//	rapid.Check(t, func(t *rapid.T) {
//		sequence := usertest.Sequences(user.MaxHoldsPerUpdate).Draw(t, "sequence")
//		if err := sequence.Run(ctx, subject, id); err != nil {
//			t.Fatal(err)
//		}
//	})
//
// [Conversions] draws histories that begin with an account as the version before granted periods left it (rule 15).
package usertest
