package api

import (
	"context"
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

// fakeBills is a daemon with one bill.
type fakeBills struct {
	asked     BillQuery
	corrected []CorrectBill
}

func (*fakeBills) bill() vps.Bill {
	return vps.Bill{
		Schema: SchemaVersion, Month: vps.Month{Year: 2026, Month: time.October}, State: vps.BillFinal, Digits: 2, Total: 9400, Days: 31, Passed: 31,
		Price: vps.DefaultPrice(), Tenants: []vps.BillTenant{{Tenant: "bob", Lines: []vps.BillLine{}, Corrections: []vps.BillCorrection{}, Total: 9400}},
	}
}

func (f *fakeBills) Bills(context.Context) ([]vps.BillSummary, error) {
	return []vps.BillSummary{f.bill().Summary()}, nil
}

func (f *fakeBills) Bill(_ context.Context, q BillQuery) (vps.Bill, error) {
	f.asked = q
	return f.bill(), nil
}

func (f *fakeBills) CorrectBill(_ context.Context, _ vps.Month, c CorrectBill) (vps.Bill, error) {
	f.corrected = append(f.corrected, c)
	return f.bill(), nil
}

func TestBills(t *testing.T) {
	t.Parallel()
	fake := &fakeBills{}
	f := newFake()
	b := f.backend()
	b.Bills = fake
	s := startWith(t, f, &b)
	same(t, must[[]vps.BillSummary](t)(s.Bills(t.Context())), []vps.BillSummary{fake.bill().Summary()})
	month := fake.bill().Month
	for _, q := range []BillQuery{{}, {Month: &month}, {Month: &month, Tenant: "bob", Rows: true}} {
		same(t, must[vps.Bill](t)(s.Bill(t.Context(), q)), fake.bill())
		same(t, fake.asked, q)
	}
	c := CorrectBill{Guest: "alice", Amount: "-1.50", Reason: "down for a day"}
	same(t, must[vps.Bill](t)(s.CorrectBill(t.Context(), month, c)), fake.bill())
	same(t, fake.corrected, []CorrectBill{c})
	for _, path := range []string{"/v1/bills/2026-13", "/v1/bills/october", "/v1/bills/2026-10?tenant=No+name", "/v1/bills/%E2%80%8B"} {
		if _, body := s.raw(t, "GET", path, "", ""); !strings.Contains(body, string(vps.CodeInvalid)) {
			t.Errorf("%s: %s", path, body)
		}
	}
	if _, body := s.raw(t, "POST", "/v1/bills/current/corrections", "application/json", `{"amount":"1","reason":"x"}`); !strings.Contains(body, string(vps.CodeInvalid)) || len(fake.corrected) != 1 {
		t.Errorf("a month without a name was corrected: %s", body)
	}
}
