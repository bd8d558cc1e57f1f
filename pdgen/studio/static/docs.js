// The API's description as a page, from /openapi.json.
import { element, request } from "./api.js";

const description = await request("GET", "/openapi.json");
const page = document.getElementById("docs");

function nameOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(nameOf).join(" or ");
  if (schema.enum) return schema.enum.join(", ");
  if (schema.type === "array") return `list of ${nameOf(schema.items)}`;
  return schema.format || schema.contentEncoding || schema.type || "any";
}

page.append(element("p", {}, description.info.description));
for (const [path, operations] of Object.entries(description.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const body = operation.requestBody?.content["application/json"].schema;
    const [media, answer] = Object.entries(Object.values(operation.responses)[0].content ?? {})[0] ?? ["nothing", {}];
    const query = operation.parameters.filter((one) => one.in === "query").map((one) => one.name);
    page.append(
      element("h2", {}, `${method.toUpperCase()} ${path}`),
      element("p", {}, `${operation.summary} ${operation.description}`),
      element("p", {}, [
        query.length ? `Query: ${query.join(", ")}. ` : "",
        body ? `Body: ${nameOf(body)}. ` : "",
        `Answer: ${nameOf(answer.schema) || media}.`,
      ].join("")),
    );
  }
}
for (const [name, schema] of Object.entries(description.components.schemas)) {
  const rows = Object.entries(schema.properties ?? {}).map(([field, kind]) =>
    element("tr", {}, element("th", { scope: "row" }, field), element("td", {}, nameOf(kind)),
      element("td", {}, kind.default === undefined ? "required" : JSON.stringify(kind.default))));
  page.append(element("h2", { id: name }, name), element("pre", {}, schema.description ?? ""), element("table", {}, ...rows));
}
