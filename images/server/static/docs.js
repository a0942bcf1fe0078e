// The page at /docs: every operation of /openapi.json with its examples. No script from elsewhere, so that it works
// in a cluster without a way out.
const schema = await (await fetch("/openapi.json")).json();
const made = (name, text = "", ...children) => {
  const node = document.createElement(name);
  node.append(text, ...children);
  return node;
};

function examples(title, content = {}) {
  const { examples, example } = content["application/json"] ?? {};
  const shown = Object.entries(examples ?? (example ? { "": { value: example } } : {}));
  return shown.map(([form, { value }]) => {
    const text = JSON.stringify(value), block = made("pre", text.length > 600 ? `${text.slice(0, 600)} …` : text);
    block.tabIndex = 0;
    return made("div", made("p", form ? `${title}: ${form}` : title), block);
  });
}

document.title = document.getElementById("title").textContent = `API of ${schema.info.title}`;
for (const [path, methods] of Object.entries(schema.paths))
  for (const [method, operation] of Object.entries(methods)) {
    const article = made("article", made("h2", made("code", `${method.toUpperCase()} ${path}`)));
    article.append(made("p", operation.description ?? operation.summary));
    article.append(...examples("Request", operation.requestBody?.content));
    article.append(...examples("Answer", operation.responses["200"]?.content));
    document.getElementById("operations").append(article);
  }
const errors = Object.entries(schema.paths["/predict"].post.responses).filter(([status]) => status !== "200");
const lines = errors.map(([status, { description }]) => made("li", `${status}: ${description}`));
const told = made("p", "In place of any of these answers, with a sentence in its body:");
document.getElementById("operations").append(made("article", made("h2", "Errors"), told, made("ul", "", ...lines)));
