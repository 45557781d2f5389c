// Write times in the visitor's own time zone and manner.

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
for (const time of document.querySelectorAll("time")) tell(time, time.dateTime);

export function tell(time, moment) {
  time.dateTime = moment ?? "";
  time.textContent = moment ? format.format(new Date(moment)) : "";
}
