package verdict

import (
	"time"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// Vector is a case of tests/vectors/verify.json. That file's comment describes which fields may be left out, and what
// that means. The unit test and the conformance program read it.
type Vector struct {
	Record *struct {
		ProjectID       string     `json:"project_id"`
		EnvironmentID   string     `json:"environment_id"`
		Scopes          []string   `json:"scopes"`
		AllowedCIDRs    []string   `json:"allowed_cidrs"`
		Active          *bool      `json:"active"`
		RevokeTime      *time.Time `json:"revoke_time"`
		ExpireTime      *time.Time `json:"expire_time"`
		GraceExpireTime *time.Time `json:"grace_expire_time"`
	} `json:"record"`
	Request struct {
		ProjectIDs     []string `json:"project_ids"`
		EnvironmentID  string   `json:"environment_id"`
		RequiredScopes []string `json:"required_scopes"`
		ClientIP       string   `json:"client_ip"`
	} `json:"request"`
	Now time.Time `json:"now"`
}

// Decide returns the verdict's code for this case.
func (v Vector) Decide() tumblerv1.VerifyCode {
	demand := Demand(v.Request)
	if v.Record == nil {
		return Decide(nil, &demand, v.Now.UnixMicro())
	}
	record := Record{
		ProjectID:       v.Record.ProjectID,
		EnvironmentID:   v.Record.EnvironmentID,
		Scopes:          v.Record.Scopes,
		Networks:        Networks(v.Record.AllowedCIDRs),
		Revoked:         v.Record.RevokeTime != nil,
		Inactive:        v.Record.Active != nil && !*v.Record.Active,
		ExpireTime:      orNever(v.Record.ExpireTime),
		GraceExpireTime: orNever(v.Record.GraceExpireTime),
	}
	return Decide(&record, &demand, v.Now.UnixMicro())
}

func orNever(instant *time.Time) int64 {
	if instant == nil {
		return Never
	}
	return instant.UnixMicro()
}
